# With a key of your own in Cloud KMS: Google's services may use it. Off unless `kms_key` is set.
locals {
  # An agent's address contains the project's number. A service that was never used has no agent yet: see docs/deploy.md.
  agents = {
    artifactregistry = "gcp-sa-artifactregistry"
    firestore        = "gcp-sa-firestore"
    functions        = "gcf-admin-robot"
    run              = "serverless-robot-prod"
    secretmanager    = "gcp-sa-secretmanager"
    storage          = "gs-project-accounts"
  }
  agents_at_work = setsubtract(keys(local.agents), concat(
    local.as_function ? [] : ["functions"],
    local.as_function || var.pooled_files ? [] : ["storage"],
  ))
}

resource "google_kms_crypto_key_iam_member" "agents" {
  for_each = var.kms_key == null ? toset([]) : toset(local.agents_at_work)

  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:service-${local.project_number}@${local.agents[each.key]}.iam.gserviceaccount.com"

  depends_on = [google_project_service.this]
}
