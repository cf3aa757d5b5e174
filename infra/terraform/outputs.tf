# Outputs. None of them is secret.
output "admin_url" {
  description = "The status of the gateway, for the admin token."
  value       = "${local.url}/admin/status"
}

output "audience" {
  description = "The audience of a service account's ID token, if the gateway is private: the service's own address, even behind a domain."
  value       = local.service_url
}

output "dashboard_url" {
  description = "The dashboard in the console."
  value       = "https://console.cloud.google.com/monitoring/dashboards/builder/${basename(google_monitoring_dashboard.pollux.id)}?project=${var.project}"
}

output "database" {
  description = "The store of the counters, as POLLUX_STORE names it."
  value       = local.environment.POLLUX_STORE
}

output "domain_address" {
  description = "The address for the domain's A record; null without a domain."
  value       = one(google_compute_global_address.this[*].address)
}

output "next_commands" {
  description = "The next commands: a value for each key, a token, a check."
  value = join("\n", concat(
    [
      "export POLLUX_SECRETS=${var.project} POLLUX_STORE=${local.environment.POLLUX_STORE}",
    ],
    length(var.keys) == 0 ? ["pollux keys add first   # the value is asked for, hidden"] : [
      for id in keys(var.keys) : "pollux keys rotate ${id}   # the first value of a declared key, asked for, hidden"
    ],
    [for name in sort(tolist(var.tokens)) : "pollux tokens add ${name} --url ${local.url}   # shown once"],
    var.admin_token ? ["pollux tokens add --admin   # shown once"] : [],
    ["${var.private ? "IDENTITY_TOKEN=$(gcloud auth print-identity-token) " : ""}pollux deploy check ${local.url}"],
  ))
}

output "repository" {
  description = "Where images are built or pushed to."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

output "run_service_account" {
  description = "The service account of the gateway at run time."
  value       = google_service_account.run.email
}

output "secrets" {
  description = "The declared secrets, which need a value if they have none yet."
  value       = sort(keys(local.secrets))
}

output "service" {
  description = "The Cloud Run service, for a function too: for logs, revisions and rollback."
  value       = local.service_name
}

output "url" {
  description = "The base URL for clients."
  value       = local.url
}
