# The minimum: a public function, keys added by the command line. Costs nothing while there are no requests.
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
}

output "next_commands" {
  value = module.pollux.next_commands
}

output "url" {
  value = module.pollux.url
}
