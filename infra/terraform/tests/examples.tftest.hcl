# The examples, unchanged, with providers that make no calls.
mock_provider "archive" {}
mock_provider "time" {}
mock_provider "google" {
  mock_resource "google_monitoring_notification_channel" {
    defaults = { id = "projects/my-project/notificationChannels/1" }
  }

  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

variables {
  project = "my-project"
}

run "private" {
  module {
    source = "./examples/private"
  }

  assert {
    condition     = strcontains(output.next_commands, "pollux tokens add batch") && strcontains(output.next_commands, "pollux tokens add people")
    error_message = "The commands make a token for each client."
  }

  assert {
    condition     = strcontains(output.next_commands, "IDENTITY_TOKEN=$(gcloud auth print-identity-token) pollux deploy check ${output.url}")
    error_message = "The check of a private gateway needs an ID token as well."
  }

  assert {
    condition     = output.audience == output.url
    error_message = "Service accounts ask for an ID token for the service's own address."
  }
}

run "production" {
  command = plan

  module {
    source = "./examples/production"
  }

  variables {
    billing_account = "012345-6789AB-CDEF01"
    image           = "europe-west1-docker.pkg.dev/my-project/pollux/pollux@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    kms_key         = "projects/my-project/locations/europe-west1/keyRings/ring/cryptoKeys/key"
  }

  assert {
    condition     = output.url == "https://gemini.example.com" && strcontains(output.next_commands, "pollux keys rotate alice")
    error_message = "Clients call the domain; rotate adds the first value of a declared key: add would make a secret."
  }
}
