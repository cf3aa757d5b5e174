# Keeps request URLs with credentials out of the platform's request log. Pollux's own log never has them.
locals {
  # Google's own filter of `_Default`, so that audit logs are not kept twice.
  default_sink_filter = join(" AND ", [
    for log in ["activity", "system_event", "access_transparency"] :
    "NOT LOG_ID(\"cloudaudit.googleapis.com/${log}\") AND NOT LOG_ID(\"externalaudit.googleapis.com/${log}\")"
  ])

  # Gemini's clients may send a token as `key`; an upload's address is itself the permission to write there.
  url_secrets = "httpRequest.requestUrl=~\"[?&](key|access_token|upload_id|upload_token)=\""
  url_sources = join(" OR ", concat(
    ["(resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"${var.name}\")"],
    var.domain == null ? [] : ["(resource.type=\"http_load_balancer\" AND resource.labels.backend_service_name=\"${var.name}\")"],
  ))
}

# Every project has this sink. The provider adopts it, and a destroy leaves it unchanged, with its exclusions. It is the
# project's only place for exclusions, so declare others that you need by the variable too.
resource "google_logging_project_sink" "default" {
  count = var.request_log.exclude_url_secrets ? 1 : 0

  project     = var.project
  name        = "_Default"
  destination = "logging.googleapis.com/projects/${var.project}/locations/global/buckets/_Default"
  filter      = local.default_sink_filter

  exclusions {
    name        = "${var.name}-url-secrets"
    description = "Requests whose URL carries a key, a token or the address of an upload."
    filter      = "(${local.url_sources}) AND ${local.url_secrets}"
  }

  dynamic "exclusions" {
    for_each = var.request_log.other_exclusions

    content {
      name   = exclusions.key
      filter = exclusions.value
    }
  }

  depends_on = [google_project_service.this]
}
