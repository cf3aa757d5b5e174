# Metrics from Pollux's log lines, and the dashboard. Cloud Run itself counts requests and latency.
locals {
  log_source = "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"${var.name}\""
  requests   = "${local.log_source} AND jsonPayload.logger=\"pollux.request\""

  # name -> what is counted. With `value` the metric is a distribution of that field, else a count of lines.
  metrics = {
    commits = {
      description = "Commits to Firestore, by the request that needed them."
      filter      = local.requests
      value       = "EXTRACT(jsonPayload.request.commits)"
      labels      = {}
    }
    cooldowns = {
      description = "Quotas that began to rest."
      filter      = "${local.log_source} AND jsonPayload.fields.event=\"cooldown\""
      value       = null
      labels      = { cause = "EXTRACT(jsonPayload.fields.cause)" }
    }
    refused = {
      description = "Requests of which Google refused at least one attempt with 429."
      filter      = "${local.requests} AND jsonPayload.request.attempts.status=\"429\""
      value       = null
      labels      = { model = "EXTRACT(jsonPayload.request.model_used)" }
    }
    set_aside = {
      description = "Keys, projects, models and tools that were set aside."
      filter      = "${local.log_source} AND jsonPayload.fields.event=\"set-aside\""
      value       = null
      labels      = { cause = "EXTRACT(jsonPayload.fields.cause)", kind = "EXTRACT(jsonPayload.fields.kind)" }
    }
    waits = {
      description = "How long requests waited for a slot, in milliseconds."
      filter      = local.requests
      value       = "EXTRACT(jsonPayload.request.waited_ms)"
      labels      = {}
    }
  }

  run_metric = "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"${var.name}\" AND metric.type="
  own_metric = "${local.run_metric}\"logging.googleapis.com/user/${var.name}"

  # title -> one chart of the dashboard: filter, aligner, reducer, grouping.
  charts = {
    "Requests by status"                      = ["${local.run_metric}\"run.googleapis.com/request_count\"", "ALIGN_RATE", "REDUCE_SUM", ["metric.label.response_code_class"]]
    "Latency, median"                         = ["${local.run_metric}\"run.googleapis.com/request_latencies\"", "ALIGN_DELTA", "REDUCE_PERCENTILE_50", []]
    "Latency, 99 %"                           = ["${local.run_metric}\"run.googleapis.com/request_latencies\"", "ALIGN_DELTA", "REDUCE_PERCENTILE_99", []]
    "Waits for a slot, ms, 95 %"              = ["${local.own_metric}/waits\"", "ALIGN_DELTA", "REDUCE_PERCENTILE_95", []]
    "Refused upstream with 429, by model"     = ["${local.own_metric}/refused\"", "ALIGN_RATE", "REDUCE_SUM", ["metric.label.model"]]
    "Cooldowns, by cause"                     = ["${local.own_metric}/cooldowns\"", "ALIGN_RATE", "REDUCE_SUM", ["metric.label.cause"]]
    "Keys and others set aside, by cause"     = ["${local.own_metric}/set_aside\"", "ALIGN_RATE", "REDUCE_SUM", ["metric.label.kind", "metric.label.cause"]]
    "Commits for a request, mean"             = ["${local.own_metric}/commits\"", "ALIGN_DELTA", "REDUCE_MEAN", []]
    "Instances"                               = ["${local.run_metric}\"run.googleapis.com/container/instance_count\"", "ALIGN_MAX", "REDUCE_SUM", ["metric.label.state"]]
    "Requests open at once on one, 99 %"      = ["${local.run_metric}\"run.googleapis.com/container/max_request_concurrencies\"", "ALIGN_DELTA", "REDUCE_PERCENTILE_99", []]
    "Memory in use, share of the limit, 99 %" = ["${local.run_metric}\"run.googleapis.com/container/memory/utilizations\"", "ALIGN_DELTA", "REDUCE_PERCENTILE_99", []]
    "Time billed, seconds a second"           = ["${local.run_metric}\"run.googleapis.com/container/billable_instance_time\"", "ALIGN_RATE", "REDUCE_SUM", []]
  }
}

resource "google_logging_metric" "this" {
  for_each = local.metrics

  project          = var.project
  name             = "${var.name}/${each.key}"
  description      = each.value.description
  filter           = each.value.filter
  value_extractor  = each.value.value
  label_extractors = each.value.labels

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = each.value.value == null ? "INT64" : "DISTRIBUTION"
    unit        = "1"

    dynamic "labels" {
      for_each = each.value.labels

      content {
        key        = labels.key
        value_type = "STRING"
      }
    }
  }

  # From 1 to about 130,000: milliseconds up to two minutes, and small counts.
  dynamic "bucket_options" {
    for_each = each.value.value[*]

    content {
      exponential_buckets {
        num_finite_buckets = 34
        growth_factor      = 1.4142135
        scale              = 1
      }
    }
  }

  depends_on = [google_project_service.this]
}

resource "google_monitoring_dashboard" "pollux" {
  project = var.project

  dashboard_json = jsonencode({
    displayName = "Pollux: ${var.name}"
    mosaicLayout = {
      columns = 12
      tiles = [
        for number, title in keys(local.charts) : {
          xPos   = number % 2 * 6
          yPos   = floor(number / 2) * 4
          width  = 6
          height = 4
          widget = {
            title = title
            xyChart = {
              dataSets = [{
                plotType = "LINE"
                timeSeriesQuery = {
                  timeSeriesFilter = {
                    filter = local.charts[title][0]
                    aggregation = {
                      alignmentPeriod    = "60s"
                      perSeriesAligner   = local.charts[title][1]
                      crossSeriesReducer = local.charts[title][2]
                      groupByFields      = local.charts[title][3]
                    }
                  }
                }
              }]
            }
          }
        }
      ]
    }
  })

  depends_on = [google_logging_metric.this]
}

resource "google_monitoring_uptime_check_config" "health" {
  count = var.uptime_check ? 1 : 0

  project      = var.project
  display_name = "${var.name} answers"
  timeout      = "10s"
  period       = "300s"

  http_check {
    path         = "/health"
    port         = 443
    use_ssl      = true
    validate_ssl = true
  }

  monitored_resource {
    type   = "uptime_url"
    labels = { project_id = var.project, host = trimprefix(local.url, "https://") }
  }

  depends_on = [google_project_service.this]
}
