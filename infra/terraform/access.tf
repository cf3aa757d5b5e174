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

# A function that gives way to an image, or the other way, takes the grants with it; the new service has the same name, by
# which nothing would seem to have changed.
resource "terraform_data" "runner" {
  input = local.as_function ? "function" : "image"
}
