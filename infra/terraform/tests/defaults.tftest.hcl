# The plan if only the project is set, and all roles with their conditions. tests/infra checks the whole plan.
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

run "defaults" {
  assert {
    condition     = length(google_storage_bucket.files) + length(google_storage_bucket_iam_member.run_files) == 0
    error_message = "Files are not pooled unless that is asked for: no bucket, and no access to one."
  }

  assert {
    condition     = length(google_cloudfunctions2_function.gateway) == 1 && length(google_cloud_run_v2_service.gateway) == 0
    error_message = "Without an image the gateway is a function, which needs no image to be built by hand."
  }

  assert {
    condition     = google_cloudfunctions2_function.gateway[0].service_config[0].min_instance_count == 0
    error_message = "It scales to zero: without requests no instance costs anything."
  }

  assert {
    condition     = google_cloudfunctions2_function.gateway[0].service_config[0].max_instance_request_concurrency == 80
    error_message = "A function serves one request at once by default, which would cost eighty times as much."
  }

  assert {
    condition     = google_cloudfunctions2_function.gateway[0].service_config[0].timeout_seconds == 3600
    error_message = "Long streams and waits for a slot need the longest timeout."
  }

  assert {
    condition = (
      google_cloudfunctions2_function.gateway[0].service_config[0].environment_variables.POLLUX_MAX_INSTANCES
      == tostring(google_cloudfunctions2_function.gateway[0].service_config[0].max_instance_count)
    )
    error_message = "The gateway divides its safe share by the number of instances that there can be: both must be one number."
  }

  assert {
    condition = (
      google_cloudfunctions2_function.gateway[0].service_config[0].environment_variables.FUNCTION_USE_ASGI == "1"
      && google_cloudfunctions2_function.gateway[0].build_config[0].environment_variables.FUNCTION_USE_ASGI == "1"
      && google_cloudfunctions2_function.gateway[0].build_config[0].entry_point == "gateway"
    )
    error_message = "main.py's handler is an ASGI one: without this the Functions Framework would start it as WSGI."
  }

  assert {
    condition     = google_cloudfunctions2_function.gateway[0].service_config[0].environment_variables.POLLUX_STORE == "firestore://my-project/pollux"
    error_message = "Instances share their counters in the database that was made here."
  }

  assert {
    condition     = google_cloudfunctions2_function.gateway[0].service_config[0].ingress_settings == "ALLOW_ALL"
    error_message = "Without a load balancer in front, the run.app address is the only one."
  }

  assert {
    condition     = keys(google_cloud_run_v2_service_iam_member.invokers) == ["allUsers"]
    error_message = "It is public by default: SDKs cannot send an ID token, and Pollux asks for its own."
  }

  assert {
    condition     = google_firestore_database.pollux.delete_protection_state == "DELETE_PROTECTION_ENABLED"
    error_message = "The database must not be deleted by mistake."
  }

  assert {
    condition     = google_firestore_database.pollux.point_in_time_recovery_enablement == "POINT_IN_TIME_RECOVERY_DISABLED" && length(google_firestore_backup_schedule.daily) == 0
    error_message = "Recovery and backups cost, and counters of a minute are seldom worth it: off by default."
  }

  assert {
    condition     = length(google_firestore_field.expires_at.ttl_config) == 1 && google_firestore_field.expires_at.collection == "pollux"
    error_message = "Firestore deletes unused documents itself."
  }

  assert {
    condition     = google_firestore_field.no_index.field == "*" && length(google_firestore_field.no_index.index_config[0].indexes) == 0
    error_message = "Documents are not looked up by fields: an index would make every commit more expensive."
  }

  assert {
    condition     = join(",", keys(google_secret_manager_secret.this)) == "pollux-admin-token,pollux-token-default"
    error_message = "One client and the admin have a secret; those of keys come from the variable or the command line."
  }

  assert {
    condition     = google_storage_bucket.source[0].public_access_prevention == "enforced" && google_storage_bucket.source[0].uniform_bucket_level_access
    error_message = "Only the build account reads the bucket."
  }

  assert {
    condition     = startswith(google_storage_bucket_object.source[0].name, "source-${data.archive_file.source[0].output_sha256}")
    error_message = "A changed source must be a new object, or the function would not be built again."
  }

  assert {
    condition     = length(google_artifact_registry_repository.images.cleanup_policies) == 2
    error_message = "Images of old builds are cleaned up, the newest kept for a rollback."
  }

  assert {
    condition     = length(google_logging_project_sink.default[0].exclusions) == 1 && strcontains(google_logging_project_sink.default[0].exclusions[0].filter, "key|access_token|upload_id")
    error_message = "URLs with a key or an upload's address must not be kept in the platform's request log."
  }

  assert {
    condition     = strcontains(google_logging_project_sink.default[0].filter, "NOT LOG_ID(\"cloudaudit.googleapis.com/activity\")")
    error_message = "The adopted sink keeps Google's own filter, or audit logs would be stored and billed twice."
  }

  assert {
    condition     = join(",", keys(google_monitoring_alert_policy.log)) == "no_usable_key,quota_nearly_spent,store_trouble" && length(google_monitoring_alert_policy.errors) == 1
    error_message = "The four alerts that the docs promise."
  }

  assert {
    condition = (
      length(google_monitoring_uptime_check_config.health) + length(google_compute_backend_service.this)
      + length(google_billing_budget.this) + length(google_kms_crypto_key_iam_member.agents) == 0
    )
    error_message = "What costs, or needs a right elsewhere, is off by default."
  }

  assert {
    condition     = output.database == "firestore://my-project/pollux" && strcontains(output.next_commands, "pollux tokens add default --url ${output.url}")
    error_message = "The outputs say what to type next, ready to be pasted."
  }

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
    error_message = "Listing cannot have a condition, so the custom role contains nothing else."
  }

  assert {
    condition = alltrue([
      for member in [google_project_iam_member.run_firestore, google_project_iam_member.run_secret_accessor, google_project_iam_member.run_secret_lister] :
      member.member == "serviceAccount:run@example"
    ])
    error_message = "Only the run-time account has these roles."
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
