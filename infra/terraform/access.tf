# Who may call. Public means that Pollux itself asks for a token; private that Google asks for an ID token before that.
resource "google_cloud_run_v2_service_iam_member" "invokers" {
  for_each = var.private ? var.invokers : toset(["allUsers"])

  project  = var.project
  location = var.region
  name     = local.service_name
  role     = "roles/run.invoker"
  member   = each.key

  lifecycle {
    replace_triggered_by = [terraform_data.runner]
  }
}

# Replacing a function by an image, or the reverse, deletes the grants; the new service has the same name, so Terraform would
# see no change.
resource "terraform_data" "runner" {
  input = local.as_function ? "function" : "image"
}
