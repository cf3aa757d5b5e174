# The accounts that run and build the gateway, with the few permissions that each needs.
resource "google_service_account" "run" {
  project      = var.project
  account_id   = "${var.name}-run"
  display_name = "Pollux at run time"

  depends_on = [google_project_service.this]
}

resource "google_project_iam_member" "run_firestore" {
  project = var.project
  role    = "roles/datastore.user"
  member  = google_service_account.run.member

  condition {
    title       = "${var.name}-database"
    description = "The counters of Pollux, and no other database."
    expression  = "resource.name == \"projects/${var.project}/databases/${google_firestore_database.pollux.name}\""
  }
}

# A condition on names can limit access but not `list`, which is a permission on the project. So these two permissions have no
# condition. They show names and labels, never a value.
resource "google_project_iam_custom_role" "secret_lister" {
  project     = var.project
  role_id     = "${replace(var.name, "-", "_")}_secret_lister"
  title       = "Pollux: list secrets"
  description = "Lists secrets and their versions, without their values."
  permissions = ["secretmanager.secrets.list", "secretmanager.versions.list"]

  depends_on = [google_project_service.this]
}

resource "google_project_iam_member" "run_secret_lister" {
  project = var.project
  role    = google_project_iam_custom_role.secret_lister.name
  member  = google_service_account.run.member
}

resource "google_project_iam_member" "run_secret_accessor" {
  project = var.project
  role    = "roles/secretmanager.secretAccessor"
  member  = google_service_account.run.member

  condition {
    title       = "${var.name}-secrets"
    description = "Secrets of Pollux, also those that its command line makes later."
    expression  = "resource.name.startsWith(\"projects/${local.project_number}/secrets/pollux-\")"
  }
}

resource "google_service_account" "build" {
  count = local.as_function ? 1 : 0

  project      = var.project
  account_id   = "${var.name}-build"
  display_name = "Pollux at build time"

  depends_on = [google_project_service.this]
}

resource "google_project_iam_member" "build_log" {
  count = local.as_function ? 1 : 0

  project = var.project
  role    = "roles/logging.logWriter"
  member  = google_service_account.build[0].member
}

resource "google_artifact_registry_repository_iam_member" "build_push" {
  count = local.as_function ? 1 : 0

  project    = var.project
  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.repository_id
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.build[0].member
}

resource "google_storage_bucket_iam_member" "build_source" {
  count = local.as_function ? 1 : 0

  bucket = google_storage_bucket.source[0].name
  role   = "roles/storage.objectViewer"
  member = google_service_account.build[0].member
}

# Cloud Functions copies the zip into its own bucket, which it makes with the first function of a region, and builds from
# there. A resource cannot name that bucket before it exists; a condition can.
resource "google_project_iam_member" "build_copy" {
  count = local.as_function ? 1 : 0

  project = var.project
  role    = "roles/storage.objectViewer"
  member  = google_service_account.build[0].member

  condition {
    title       = "${var.name}-build-source"
    description = "The copy of the source that Cloud Functions makes."
    expression  = "resource.name.startsWith(\"projects/_/buckets/gcf-v2-sources-${local.project_number}-${var.region}\")"
  }
}

# IAM needs a minute until roles are known everywhere; a build that starts earlier fails.
resource "time_sleep" "build_roles" {
  count = local.as_function ? 1 : 0

  create_duration = "90s"
  triggers        = { account = google_service_account.build[0].email }

  depends_on = [
    google_artifact_registry_repository_iam_member.build_push,
    google_project_iam_member.build_copy,
    google_project_iam_member.build_log,
    google_storage_bucket_iam_member.build_source,
  ]
}
