# What is deployed: the zip of function/, its bucket, and the repository of the images that are built from it.
locals {
  source_dir = "${path.module}/../../function"

  # Listed by kind, so that no key file, cache or editor's copy in the folder is packed.
  source_files = toset(concat(
    ["main.py", "requirements.txt"],
    tolist(fileset(local.source_dir, "pollux/**/*.{py,toml}")),
    tolist(fileset(local.source_dir, "pollux/py.typed")),
  ))
}

data "archive_file" "source" {
  count = local.as_function ? 1 : 0

  type        = "zip"
  source_dir  = local.source_dir
  excludes    = setsubtract(fileset(local.source_dir, "**"), local.source_files)
  output_path = "${path.root}/.terraform/${var.name}-source.zip"
  # The same bytes from every checkout, independent of its umask.
  output_file_mode = "0644"
}

resource "google_storage_bucket" "source" {
  #checkov:skip=CKV_GCP_62:It contains the zip of public source code; the audit log shows access, if that is on.
  #checkov:skip=CKV_GCP_78:An object's name is the hash of its content, so no object ever gets a second version.
  count = local.as_function ? 1 : 0

  project                     = var.project
  name                        = "${var.project}-${var.name}-source"
  location                    = var.region
  labels                      = local.labels
  force_destroy               = true
  public_access_prevention    = "enforced"
  uniform_bucket_level_access = true

  dynamic "encryption" {
    for_each = var.kms_key[*]

    content {
      default_kms_key_name = encryption.value
    }
  }

  depends_on = [google_project_service.this, google_kms_crypto_key_iam_member.agents]
}

# The name is the hash of the content: an unchanged source changes nothing in the plan, a changed one is built again.
resource "google_storage_bucket_object" "source" {
  count = local.as_function ? 1 : 0

  bucket = google_storage_bucket.source[0].name
  name   = "source-${data.archive_file.source[0].output_sha256}.zip"
  source = data.archive_file.source[0].output_path
}

resource "google_artifact_registry_repository" "images" {
  #checkov:skip=CKV_GCP_84:Encrypted with Google's keys by default, with your own if kms_key is set.
  project       = var.project
  location      = var.region
  repository_id = var.name
  description   = "Images of Pollux: built from the function's source, or pushed."
  format        = "DOCKER"
  labels        = local.labels
  kms_key_name  = var.kms_key

  # All but the newest are deleted after a month; keep wins over delete.
  cleanup_policies {
    id     = "keep-newest"
    action = "KEEP"

    most_recent_versions {
      keep_count = 5
    }
  }

  cleanup_policies {
    id     = "delete-old"
    action = "DELETE"

    condition {
      older_than = "2592000s"
    }
  }

  depends_on = [google_project_service.this, google_kms_crypto_key_iam_member.agents]
}
