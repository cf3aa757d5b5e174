# A mail when the month's bill gets large. Off unless `budget` is set, because it needs a role on the billing account.
resource "google_billing_budget" "this" {
  count = var.budget == null ? 0 : 1

  billing_account = var.budget.billing_account
  display_name    = "${var.name} in ${var.project}"

  budget_filter {
    projects = ["projects/${local.project_number}"]
  }

  amount {
    specified_amount {
      currency_code = var.budget.currency
      units         = tostring(var.budget.amount)
    }
  }

  dynamic "threshold_rules" {
    for_each = [0.5, 0.9, 1]

    content {
      threshold_percent = threshold_rules.value
    }
  }

  # Without notification channels there is no such rule: the billing account's admins get their mail anyway.
  dynamic "all_updates_rule" {
    for_each = length(var.notification_channels) == 0 ? [] : [true]

    content {
      monitoring_notification_channels = slice(sort(tolist(var.notification_channels)), 0, min(5, length(var.notification_channels)))
      disable_default_iam_recipients   = false
    }
  }

  depends_on = [google_project_service.this]
}
