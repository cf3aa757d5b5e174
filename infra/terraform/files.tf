# The contents of pooled files (docs/resources.md): a bucket that deletes them, and access to it. Off unless `pooled_files` is set.
resource "google_storage_bucket" "files" {
  #checkov:skip=CKV_GCP_62:The audit log shows who reads it, if that is on; its objects live for two days.
  #checkov:skip=CKV_GCP_78:An object is written once under its own name, and deleted objects must be gone.
  count = var.pooled_files ? 1 : 0

  project                     = var.project
  name                        = "${var.project}-${var.name}-files"
  location                    = var.region
  labels                      = local.labels
  force_destroy               = true
  public_access_prevention    = "enforced"
  uniform_bucket_level_access = true

  # Google keeps a file for 48 hours. What the gateway did not delete is deleted the day after.
  lifecycle_rule {
    action {
      type = "Delete"
    }

    condition {
      age = 3
    }
  }

  # With soft delete, deleted objects would be kept, and paid for, a week longer.
  soft_delete_policy {
    retention_duration_seconds = 0
  }

  dynamic "encryption" {
    for_each = var.kms_key[*]

    content {
      default_kms_key_name = encryption.value
    }
  }

  depends_on = [google_project_service.this, google_kms_crypto_key_iam_member.agents]
}

resource "google_storage_bucket_iam_member" "run_files" {
  count = var.pooled_files ? 1 : 0

  bucket = google_storage_bucket.files[0].name
  role   = "roles/storage.objectUser"
  member = google_service_account.run.member
}
