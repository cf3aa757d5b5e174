# Who may call. Public means that Pollux itself asks for a token; private that Google asks for an ID token before that.
resource "google_cloud_run_v2_service_iam_member" "invokers" {
  for_each = var.private ? var.invokers : toset(["allUsers"])

  project  = var.project
  location = var.region
  name     = local.service_name
  role     = "roles/run.invoker"
  member   = each.key
}
