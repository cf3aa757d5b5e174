# Alerts, the budget, the uptime check, the request log. All defaults can stay.
variable "alerts" {
  description = "When to notify notification_channels: the share of answers with a 5xx status over `minutes`."
  type = object({
    enabled     = optional(bool, true)
    error_share = optional(number, 0.05)
    minutes     = optional(number, 10)
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.alerts.error_share > 0 && var.alerts.error_share < 1
    error_message = "alerts.error_share is a share: above 0 and below 1, such as 0.05."
  }

  validation {
    condition     = var.alerts.minutes >= 1 && var.alerts.minutes <= 1440 && floor(var.alerts.minutes) == var.alerts.minutes
    error_message = "alerts.minutes is a whole number from 1 to 1440."
  }
}

variable "budget" {
  description = "Notify the billing account's admins, and up to five notification_channels, at 50, 90 and 100 % of this amount a month."
  type = object({
    amount          = number
    billing_account = string
    currency        = optional(string)
  })
  default = null

  validation {
    condition     = var.budget == null ? true : var.budget.amount >= 1 && floor(var.budget.amount) == var.budget.amount
    error_message = "budget.amount is a whole number of the billing account's currency, 1 or more."
  }

  validation {
    condition     = var.budget == null ? true : can(regex("^[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}$", var.budget.billing_account))
    error_message = "budget.billing_account looks like 012345-6789AB-CDEF01; see: gcloud billing accounts list."
  }
}

variable "notification_channels" {
  description = "Who is notified by alerts: ids of google_monitoring_notification_channel."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for channel in var.notification_channels : can(regex("^projects/[^/]+/notificationChannels/[^/]+$", channel))])
    error_message = "Each of notification_channels is projects/PROJECT/notificationChannels/NUMBER; see: gcloud beta monitoring channels list."
  }
}

variable "request_log" {
  description = "Keep request URLs with credentials out of the project's log. This takes over the _Default sink: name its other exclusions (name -> filter) here."
  type = object({
    exclude_url_secrets = optional(bool, true)
    other_exclusions    = optional(map(string), {})
  })
  default  = {}
  nullable = false

  validation {
    condition = alltrue([
      for name, filter in var.request_log.other_exclusions : can(regex("^[A-Za-z0-9][\\w.-]{0,99}$", name)) && trimspace(filter) != ""
    ])
    error_message = "request_log.other_exclusions are a name (letters, digits, _, . and -) and a filter; an empty one would keep no log at all."
  }
}

variable "uptime_check" {
  description = "Ask /health every five minutes. It keeps an instance warm, which is then billed for those requests."
  type        = bool
  default     = false
  nullable    = false

  validation {
    condition     = !var.uptime_check || !var.private
    error_message = "uptime_check cannot reach a private gateway, which requires an ID token."
  }
}
