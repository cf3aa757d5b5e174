# A team's gateway: an image behind its own domain, declared keys, backups, alerts by mail, a budget, its own encryption key.
terraform {
  required_version = ">= 1.9"

  # Say where the state lives: terraform init -backend-config="bucket=…"
  # backend "gcs" { prefix = "pollux" }
}

variable "billing_account" {
  description = "The billing account that the budget watches."
  type        = string
}

variable "image" {
  description = "The image to run, by its digest."
  type        = string
}

variable "kms_key" {
  description = "A key in Cloud KMS, in the region below."
  type        = string
}

variable "project" {
  description = "The Google Cloud project."
  type        = string
}

provider "google" {
  project = var.project
  # Budgets are asked for in the name of a project.
  billing_project       = var.project
  user_project_override = true
}

# The module turns on what it needs, but the channel is there before it.
resource "google_project_service" "monitoring" {
  project            = var.project
  service            = "monitoring.googleapis.com"
  disable_on_destroy = false
}

resource "google_monitoring_notification_channel" "mail" {
  project      = var.project
  display_name = "Who looks after the gateway"
  type         = "email"
  labels       = { email_address = "oncall@example.com" }

  depends_on = [google_project_service.monitoring]
}

module "pollux" {
  source = "../.."

  project = var.project
  region  = "europe-west1"
  image   = var.image
  kms_key = var.kms_key

  keys = {
    alice = { project = "team-a", tier = "tier1" }
    bob   = { project = "team-b", tier = "free", limits = { "*" = { rpm = 5 } } }
  }
  tokens = ["batch", "web"]

  database = { backup_days = 14, point_in_time_recovery = true }
  domain   = { names = ["gemini.example.com"] }
  service  = { max_instances = 20, memory = "1Gi", min_instances = 1 }
  settings = { store_down = "closed", max_wait = 30 }

  budget                = { amount = 50, billing_account = var.billing_account }
  notification_channels = [google_monitoring_notification_channel.mail.id]
  uptime_check          = true
  labels                = { team = "platform" }
}

output "dashboard_url" {
  value = module.pollux.dashboard_url
}

output "domain_address" {
  value = module.pollux.domain_address
}

output "next_commands" {
  value = module.pollux.next_commands
}

output "url" {
  value = module.pollux.url
}
