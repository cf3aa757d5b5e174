# The gateway as a Cloud Run function, built from the zip. Used unless `image` is set.
resource "google_cloudfunctions2_function" "gateway" {
  count = local.as_function ? 1 : 0

  project      = var.project
  name         = var.name
  location     = var.region
  description  = "Pollux, a gateway for the Gemini API."
  labels       = local.labels
  kms_key_name = var.kms_key

  build_config {
    runtime           = "python313"
    entry_point       = "gateway"
    docker_repository = google_artifact_registry_repository.images.id
    service_account   = google_service_account.build[0].id
    # The buildpack reads it too: it chooses how the function is started.
    environment_variables = { FUNCTION_USE_ASGI = "1" }

    source {
      storage_source {
        bucket = google_storage_bucket.source[0].name
        object = google_storage_bucket_object.source[0].name
      }
    }
  }

  service_config {
    available_cpu                    = var.service.cpu
    available_memory                 = var.service.memory
    max_instance_count               = var.service.max_instances
    min_instance_count               = var.service.min_instances
    max_instance_request_concurrency = var.service.concurrency
    timeout_seconds                  = var.service.timeout_seconds
    service_account_email            = google_service_account.run.email
    ingress_settings                 = var.domain == null ? "ALLOW_ALL" : "ALLOW_INTERNAL_AND_GCLB"
    all_traffic_on_latest_revision   = true
    environment_variables            = merge(local.environment, { FUNCTION_USE_ASGI = "1" })
  }

  depends_on = [
    google_firestore_field.expires_at,
    google_project_iam_member.run_firestore,
    google_project_iam_member.run_secret_accessor,
    google_project_iam_member.run_secret_lister,
    google_secret_manager_secret.this,
    google_storage_bucket_iam_member.run_files,
    time_sleep.build_roles,
  ]
}
