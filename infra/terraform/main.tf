# Used by several files: names, labels, the environment of the gateway, and whether it is a function or an image.
locals {
  as_function = var.image == null

  labels = merge(var.labels, { managed-by = "terraform", app = var.name })

  # IAM conditions and service agents' addresses contain the project's number, not its id.
  project_number = data.google_project.this.number

  # The Cloud Run service, whichever resource made it: a function of the 2nd generation is a Cloud Run service of the same name.
  service_name = local.as_function ? google_cloudfunctions2_function.gateway[0].name : google_cloud_run_v2_service.gateway[0].name
  service_url = (
    local.as_function
    ? google_cloudfunctions2_function.gateway[0].service_config[0].uri
    : google_cloud_run_v2_service.gateway[0].uri
  )
  url = var.domain == null ? local.service_url : "https://${var.domain.names[0]}"

  # Every name here is a setting of Pollux, which does not start with an unknown one.
  environment = merge(
    {
      POLLUX_MAX_INSTANCES = tostring(var.service.max_instances)
      POLLUX_SECRETS       = var.project
      # No name means (default), whose parentheses would need quotes in a shell.
      POLLUX_STORE = trimsuffix("firestore://${var.project}/${google_firestore_database.pollux.name}", "/(default)")
    },
    var.pooled_files ? { POLLUX_BLOBS = "gs://${google_storage_bucket.files[0].name}", POLLUX_FILES = "pooled" } : {},
    {
      for name, value in var.settings :
      "POLLUX_${upper(name)}" => try(join(",", value), tostring(value)) if value != null
    },
  )
}

# Uses the Cloud Resource Manager API, which must be on before the first plan: see docs/deploy.md.
data "google_project" "this" {
  project_id = var.project
}
