# The gateway as a Cloud Run service from an image. Used when `image` is set: no 10 MB limit on streamed answers.
resource "google_cloud_run_v2_service" "gateway" {
  count = local.as_function ? 0 : 1

  project             = var.project
  name                = var.name
  location            = var.region
  description         = "Pollux, a gateway for the Gemini API."
  labels              = local.labels
  ingress             = var.domain == null ? "INGRESS_TRAFFIC_ALL" : "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER"
  deletion_protection = var.deletion_protection

  template {
    service_account                  = google_service_account.run.email
    timeout                          = "${var.service.timeout_seconds}s"
    max_instance_request_concurrency = var.service.concurrency
    encryption_key                   = var.kms_key

    scaling {
      min_instance_count = var.service.min_instances
      max_instance_count = var.service.max_instances
    }

    containers {
      image = var.image

      resources {
        limits            = { cpu = var.service.cpu, memory = var.service.memory }
        cpu_idle          = !var.service.instance_billing
        startup_cpu_boost = var.service.cpu_boost
      }

      startup_probe {
        initial_delay_seconds = 0
        period_seconds        = 1
        failure_threshold     = 30
        timeout_seconds       = 1

        http_get {
          path = "/health"
        }
      }

      dynamic "env" {
        for_each = local.environment

        content {
          name  = env.key
          value = env.value
        }
      }
    }
  }

  traffic {
    type    = "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST"
    percent = 100
  }

  depends_on = [
    google_firestore_field.expires_at,
    google_kms_crypto_key_iam_member.agents,
    google_project_iam_member.run_firestore,
    google_project_iam_member.run_secret_accessor,
    google_project_iam_member.run_secret_lister,
    google_project_service.this,
    google_secret_manager_secret.this,
    google_storage_bucket_iam_member.run_files,
  ]
}
