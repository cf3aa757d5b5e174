# Who may do what, and on what condition. tests/infra holds the whole plan to the same list.
mock_provider "archive" {}
mock_provider "time" {}
mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

override_resource {
  target = google_service_account.run
  values = { email = "run@example", member = "serviceAccount:run@example" }
}

override_resource {
  target = google_service_account.build[0]
  values = { email = "build@example", member = "serviceAccount:build@example" }
}

override_resource {
  target = google_project_iam_custom_role.secret_lister
  values = { name = "projects/my-project/roles/pollux_secret_lister" }
}

variables {
  project = "my-project"
}

run "a_function" {
  assert {
    condition     = google_cloudfunctions2_function.gateway[0].service_config[0].service_account_email == "run@example"
    error_message = "The gateway runs as its own account: the default one may edit the whole project."
  }

  assert {
    condition = (
      google_project_iam_member.run_firestore.role == "roles/datastore.user"
      && google_project_iam_member.run_firestore.condition[0].expression == "resource.name == \"projects/my-project/databases/pollux\""
    )
    error_message = "It reads and writes this database and no other."
  }

  assert {
    condition = (
      google_project_iam_member.run_secret_accessor.role == "roles/secretmanager.secretAccessor"
      && google_project_iam_member.run_secret_accessor.condition[0].expression == "resource.name.startsWith(\"projects/123456789012/secrets/pollux-\")"
    )
    error_message = "It reads values of Pollux's secrets only; IAM knows them by the project's number."
  }

  assert {
    condition = (
      google_project_iam_custom_role.secret_lister.permissions == toset(["secretmanager.secrets.list", "secretmanager.versions.list"])
      && google_project_iam_member.run_secret_lister.role == "projects/my-project/roles/pollux_secret_lister"
    )
    error_message = "Listing cannot be conditioned, so it is all that the custom role holds."
  }

  assert {
    condition = alltrue([
      for member in [google_project_iam_member.run_firestore, google_project_iam_member.run_secret_accessor, google_project_iam_member.run_secret_lister] :
      member.member == "serviceAccount:run@example"
    ])
    error_message = "These roles are the run-time account's alone."
  }

  assert {
    condition     = google_cloudfunctions2_function.gateway[0].build_config[0].service_account == google_service_account.build[0].id
    error_message = "The build runs as its own account, not as that of the gateway: a build script must not read keys."
  }

  assert {
    condition = (
      google_project_iam_member.build_log[0].role == "roles/logging.logWriter"
      && google_artifact_registry_repository_iam_member.build_push[0].role == "roles/artifactregistry.writer"
      && google_artifact_registry_repository_iam_member.build_push[0].repository == "pollux"
      && google_storage_bucket_iam_member.build_source[0].role == "roles/storage.objectViewer"
      && google_project_iam_member.build_copy[0].role == "roles/storage.objectViewer"
      && google_project_iam_member.build_copy[0].condition[0].expression == "resource.name.startsWith(\"projects/_/buckets/gcf-v2-sources-123456789012-us-central1\")"
    )
    error_message = "A build writes its log and its image and reads its source, nothing else."
  }
}

run "a_private_gateway" {
  variables {
    private  = true
    invokers = ["group:users@example.com"]
  }

  assert {
    condition     = keys(google_cloud_run_v2_service_iam_member.invokers) == ["group:users@example.com"]
    error_message = "Private means that allUsers may not call."
  }
}
