# Only for members of a group and one service account, who send an ID token in X-Serverless-Authorization.
terraform {
  required_version = ">= 1.9"
}

variable "project" {
  description = "The Google Cloud project."
  type        = string
}

provider "google" {
  project = var.project
}

module "pollux" {
  source = "../.."

  project = var.project
  region  = "europe-west1"
  private = true
  invokers = [
    "group:gemini-users@example.com",
    "serviceAccount:batch@${var.project}.iam.gserviceaccount.com",
  ]
  tokens = ["batch", "people"]
}

output "audience" {
  value = module.pollux.audience
}

output "next_commands" {
  value = module.pollux.next_commands
}

output "url" {
  value = module.pollux.url
}
