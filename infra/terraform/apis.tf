# The APIs that the project needs. They stay on when this is destroyed: others may use them.
locals {
  apis = toset(concat(
    [
      "artifactregistry.googleapis.com",
      "firestore.googleapis.com",
      "iam.googleapis.com",
      "logging.googleapis.com",
      "monitoring.googleapis.com",
      "run.googleapis.com",
      "secretmanager.googleapis.com",
    ],
    local.as_function ? ["cloudbuild.googleapis.com", "cloudfunctions.googleapis.com"] : [],
    local.as_function || var.pooled_files ? ["storage.googleapis.com"] : [],
    var.domain == null ? [] : ["compute.googleapis.com"],
    var.kms_key == null ? [] : ["cloudkms.googleapis.com"],
    var.budget == null ? [] : ["billingbudgets.googleapis.com"],
  ))
}

resource "google_project_service" "this" {
  for_each = var.enable_apis ? local.apis : toset([])

  project            = var.project
  service            = each.key
  disable_on_destroy = false
}
