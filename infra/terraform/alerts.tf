# Alerts: no usable key, too many errors, a day that is nearly spent, a store in trouble.
locals {
  # name -> the log line that triggers it. At most one mail an hour.
  log_alerts = {
    no_usable_key = {
      title    = "no usable key"
      severity = "CRITICAL"
      filter   = "${local.requests} AND jsonPayload.request.reason=\"NO_USABLE_KEY\""
      text     = "A request was refused because no key can be used. `pollux keys check --secrets ${var.project}` tells why; see also `pollux status`."
    }
    quota_nearly_spent = {
      title    = "a day's quota is nearly spent"
      severity = "WARNING"
      filter   = "${local.log_source} AND jsonPayload.fields.event=\"day-nearly-spent\""
      text     = "90 % of a project's requests or tokens of the day are used for one model. The line names both; the day ends at midnight Pacific time. Each instance says so once."
    }
    store_trouble = {
      title    = "the store is in trouble"
      severity = "ERROR"
      filter   = "${local.log_source} AND jsonPayload.fields.event=\"store-trouble\""
      text     = "Firestore is slow or does not answer. Until it does, each instance spends a safe share (POLLUX_STORE_DOWN). Look at Google Cloud's status page, then at the service account's roles."
    }
  }
}

resource "google_monitoring_alert_policy" "log" {
  for_each = var.alerts.enabled ? local.log_alerts : {}

  project               = var.project
  display_name          = "${var.name}: ${each.value.title}"
  severity              = each.value.severity
  combiner              = "OR"
  notification_channels = sort(tolist(var.notification_channels))
  user_labels           = local.labels

  conditions {
    display_name = each.value.title

    condition_matched_log {
      filter = each.value.filter
    }
  }

  alert_strategy {
    auto_close = "3600s"

    notification_rate_limit {
      period = "3600s"
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = each.value.text
  }

  depends_on = [google_project_service.this]
}

resource "google_monitoring_alert_policy" "errors" {
  count = var.alerts.enabled ? 1 : 0

  project               = var.project
  display_name          = "${var.name}: many errors"
  severity              = "ERROR"
  combiner              = "OR"
  notification_channels = sort(tolist(var.notification_channels))
  user_labels           = local.labels

  conditions {
    display_name = "share of 5xx answers"

    condition_threshold {
      filter             = "${local.run_metric}\"run.googleapis.com/request_count\" AND metric.labels.response_code_class=\"5xx\""
      denominator_filter = "${local.run_metric}\"run.googleapis.com/request_count\""
      comparison         = "COMPARISON_GT"
      threshold_value    = var.alerts.error_share
      duration           = "0s"

      aggregations {
        alignment_period     = "${var.alerts.minutes * 60}s"
        per_series_aligner   = "ALIGN_DELTA"
        cross_series_reducer = "REDUCE_SUM"
      }

      denominator_aggregations {
        alignment_period     = "${var.alerts.minutes * 60}s"
        per_series_aligner   = "ALIGN_DELTA"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "More than ${var.alerts.error_share * 100} % of the answers were errors of the gateway or of Gemini. `pollux explain REQUEST_ID` tells what became of one."
  }

  depends_on = [google_project_service.this]
}

resource "google_monitoring_alert_policy" "uptime" {
  count = var.alerts.enabled && var.uptime_check ? 1 : 0

  project               = var.project
  display_name          = "${var.name}: does not answer"
  severity              = "CRITICAL"
  combiner              = "OR"
  notification_channels = sort(tolist(var.notification_channels))
  user_labels           = local.labels

  conditions {
    display_name = "uptime check fails"

    condition_threshold {
      filter          = "resource.type=\"uptime_url\" AND metric.type=\"monitoring.googleapis.com/uptime_check/check_passed\" AND metric.labels.check_id=\"${google_monitoring_uptime_check_config.health[0].uptime_check_id}\""
      comparison      = "COMPARISON_GT"
      threshold_value = 1
      duration        = "300s"

      aggregations {
        alignment_period     = "300s"
        per_series_aligner   = "ALIGN_NEXT_OLDER"
        cross_series_reducer = "REDUCE_COUNT_FALSE"
        group_by_fields      = ["resource.label.host"]
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "/health was not answered from more than one place for five minutes."
  }

  depends_on = [google_project_service.this]
}
