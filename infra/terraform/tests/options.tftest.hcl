# What each option changes. Independent options share a run, and a plan is enough where nothing is checked that is
# known only after an apply: each run takes seconds.
mock_provider "archive" {}
mock_provider "time" {}
mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

variables {
  project = "my-project"
}

run "a_private_image_in_a_project_whose_log_is_somebody_elses" {
  variables {
    image       = "europe-west1-docker.pkg.dev/my-project/pollux/pollux@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    invokers    = ["group:users@example.com"]
    private     = true
    region      = "europe-west1"
    request_log = { exclude_url_secrets = false }
    service     = { max_instances = 3, memory = "1Gi" }
  }

  assert {
    condition     = length(google_cloudfunctions2_function.gateway) == 0 && length(google_storage_bucket.source) == 0
    error_message = "With an image nothing is built, so nothing is uploaded."
  }

  assert {
    condition     = google_cloud_run_v2_service.gateway[0].template[0].containers[0].resources[0].cpu_idle
    error_message = "Billing by the request: CPU between requests would be billed all month."
  }

  assert {
    condition = contains([
      for env in google_cloud_run_v2_service.gateway[0].template[0].containers[0].env : "${env.name}=${env.value}"
    ], "POLLUX_MAX_INSTANCES=3") && google_cloud_run_v2_service.gateway[0].template[0].scaling[0].max_instance_count == 3
    error_message = "The gateway is told the maximum that Cloud Run keeps to."
  }

  assert {
    condition     = !contains([for env in google_cloud_run_v2_service.gateway[0].template[0].containers[0].env : env.name], "FUNCTION_USE_ASGI")
    error_message = "An image starts uvicorn itself and has no use for the Functions Framework's variable."
  }

  assert {
    condition     = output.url == google_cloud_run_v2_service.gateway[0].uri && output.service == "pollux" && output.database == "firestore://my-project/pollux"
    error_message = "Whatever runs the handler, what is around it and the outputs are the same."
  }

  assert {
    condition = (
      length(google_service_account.build) + length(google_project_iam_member.build_log) + length(google_project_iam_member.build_copy)
      + length(google_storage_bucket_iam_member.build_source) + length(google_artifact_registry_repository_iam_member.build_push) == 0
    )
    error_message = "With an image there is no build, so there is no build account."
  }

  assert {
    condition     = length(google_logging_project_sink.default) == 0
    error_message = "If the _Default sink is managed elsewhere, Terraform does not touch it."
  }

  assert {
    condition     = keys(google_cloud_run_v2_service_iam_member.invokers) == ["group:users@example.com"]
    error_message = "Private means that allUsers may not call."
  }
}

run "keys_settings_and_a_key_of_ones_own" {
  command = plan

  variables {
    database = { name = "(default)" }
    keys = {
      alice = { project = "team-a", tier = "tier1" }
      bob   = { project = "example.com:Team-B", limits = { "*" = { rpm = 5 } }, enabled = false }
      carol = {}
    }
    kms_key      = "projects/my-project/locations/us-central1/keyRings/ring/cryptoKeys/key"
    labels       = { enabled = "yes", project = "platform", team = "a", tier = "web" }
    pooled_files = true
    settings     = { max_wait = 0.5, sticky = false, allow_paths = ["webhooks", "batch"], strategy = "round_robin" }
  }

  assert {
    condition     = google_secret_manager_secret.this["pollux-key-alice"].labels.project == "team-a" && google_secret_manager_secret.this["pollux-key-alice"].labels.tier == "tier1"
    error_message = "Project and tier of a key are labels."
  }

  assert {
    condition = (
      output.database == "firestore://my-project"
      && google_firestore_database.pollux.name == "(default)"
      && google_project_iam_member.run_firestore.condition[0].expression == "resource.name == \"projects/my-project/databases/(default)\""
    )
    error_message = "The default database has no name in next_commands: its parentheses would need quotes in a shell."
  }

  assert {
    condition = (
      !can(google_secret_manager_secret.this["pollux-key-bob"].labels.project)
      && google_secret_manager_secret.this["pollux-key-bob"].annotations.pollux-project == "example.com:Team-B"
    )
    error_message = "A project name that is not valid as a label is an annotation."
  }

  assert {
    condition     = google_secret_manager_secret.this["pollux-key-bob"].annotations.pollux-limits == "{\"*\":{\"rpm\":5}}" && google_secret_manager_secret.this["pollux-key-bob"].labels.enabled == "false"
    error_message = "Limits are an annotation of JSON, disabled is a label."
  }

  assert {
    condition = (
      google_secret_manager_secret.this["pollux-key-alice"].labels == tomap({ app = "pollux", managed-by = "terraform", project = "team-a", team = "a", tier = "tier1" })
      && google_secret_manager_secret.this["pollux-key-carol"].labels == tomap({ app = "pollux", managed-by = "terraform", team = "a" })
      && google_artifact_registry_repository.images.labels.tier == "web"
    )
    error_message = "Labels for the bill with the names of a key's labels are not put on secrets, or all keys would share one project."
  }

  assert {
    condition     = google_secret_manager_secret.this["pollux-key-carol"].labels.managed-by == "terraform"
    error_message = "`pollux keys remove` and `tokens revoke` warn of what Terraform would make again, and do not delete it, by this label."
  }

  assert {
    condition = (
      google_cloudfunctions2_function.gateway[0].service_config[0].environment_variables.POLLUX_MAX_WAIT == "0.5"
      && google_cloudfunctions2_function.gateway[0].service_config[0].environment_variables.POLLUX_STICKY == "false"
      && google_cloudfunctions2_function.gateway[0].service_config[0].environment_variables.POLLUX_ALLOW_PATHS == "webhooks,batch"
      && google_cloudfunctions2_function.gateway[0].service_config[0].environment_variables.POLLUX_STRATEGY == "round_robin"
    )
    error_message = "Settings are passed in the forms that settings.py reads: numbers, switches, lists by commas."
  }

  assert {
    condition = (
      one(google_storage_bucket.files[0].lifecycle_rule[0].action).type == "Delete"
      && one(google_storage_bucket.files[0].lifecycle_rule[0].condition).age == 3
      && google_storage_bucket.files[0].soft_delete_policy[0].retention_duration_seconds == 0
      && google_storage_bucket.files[0].public_access_prevention == "enforced"
      && google_storage_bucket.files[0].encryption[0].default_kms_key_name == var.kms_key
    )
    error_message = "Contents of clients' files are deleted after three days, are kept nowhere after that, and are never public."
  }

  assert {
    condition = (
      google_cloudfunctions2_function.gateway[0].service_config[0].environment_variables.POLLUX_FILES == "pooled"
      && google_cloudfunctions2_function.gateway[0].service_config[0].environment_variables.POLLUX_BLOBS == "gs://my-project-pollux-files"
    )
    error_message = "The gateway pools files in the bucket that was made for them."
  }

  assert {
    condition     = !contains(keys(google_cloudfunctions2_function.gateway[0].service_config[0].environment_variables), "POLLUX_WINDOW")
    error_message = "What is not set is left to Pollux's own default."
  }

  assert {
    condition = alltrue([
      google_firestore_database.pollux.cmek_config[0].kms_key_name == var.kms_key,
      google_storage_bucket.source[0].encryption[0].default_kms_key_name == var.kms_key,
      google_artifact_registry_repository.images.kms_key_name == var.kms_key,
      google_cloudfunctions2_function.gateway[0].kms_key_name == var.kms_key,
      alltrue([
        for secret in values(google_secret_manager_secret.this) :
        secret.replication[0].user_managed[0].replicas[0].customer_managed_encryption[0].kms_key_name == var.kms_key
      ]),
    ])
    error_message = "One key encrypts everything that is stored."
  }

  assert {
    condition = alltrue([
      for member in values(google_kms_crypto_key_iam_member.agents) :
      member.role == "roles/cloudkms.cryptoKeyEncrypterDecrypter" && startswith(member.member, "serviceAccount:service-123456789012@")
    ]) && length(google_kms_crypto_key_iam_member.agents) == 6
    error_message = "Google's service agents may use the key; no account of ours may."
  }
}

run "a_domain_recovered_and_watched" {
  variables {
    budget                = { amount = 20, billing_account = "012345-6789AB-CDEF01" }
    database              = { backup_days = 7, point_in_time_recovery = true, location = "nam5", name = "counters" }
    domain                = { names = ["gemini.example.com", "ai.example.com"], requests_per_minute = 30 }
    enable_apis           = false
    notification_channels = ["projects/my-project/notificationChannels/1"]
    request_log           = { other_exclusions = { noise = "severity<INFO" } }
    uptime_check          = true
  }

  assert {
    condition     = google_cloudfunctions2_function.gateway[0].service_config[0].ingress_settings == "ALLOW_INTERNAL_AND_GCLB"
    error_message = "The run.app address must be closed, or it would bypass Cloud Armor."
  }

  assert {
    condition     = google_compute_backend_service.this[0].security_policy == google_compute_security_policy.this[0].id
    error_message = "What comes through the load balancer passes Cloud Armor."
  }

  assert {
    condition     = [for rule in google_compute_security_policy.this[0].rule : rule.rate_limit_options[0].rate_limit_threshold[0].count if rule.action == "throttle"] == [30]
    error_message = "Each address may call as often as the variable says."
  }

  assert {
    condition     = google_compute_managed_ssl_certificate.this[0].managed[0].domains == tolist(["gemini.example.com", "ai.example.com"]) && output.url == "https://gemini.example.com"
    error_message = "The certificate is for all names; clients are told the first."
  }

  assert {
    condition     = output.audience == google_cloudfunctions2_function.gateway[0].service_config[0].uri
    error_message = "Behind a domain the audience of an ID token is still the service's own address."
  }

  assert {
    condition     = strcontains(google_logging_project_sink.default[0].exclusions[0].filter, "http_load_balancer")
    error_message = "The load balancer logs URLs too."
  }

  assert {
    condition     = google_firestore_backup_schedule.daily[0].retention == "604800s" && google_firestore_database.pollux.point_in_time_recovery_enablement == "POINT_IN_TIME_RECOVERY_ENABLED"
    error_message = "Backups are kept for the days that were asked for."
  }

  assert {
    condition     = google_project_iam_member.run_firestore.condition[0].expression == "resource.name == \"projects/my-project/databases/counters\"" && google_firestore_database.pollux.location_id == "nam5"
    error_message = "Another database has another name in the condition as well."
  }

  assert {
    condition = alltrue([
      for policy in concat(values(google_monitoring_alert_policy.log), google_monitoring_alert_policy.errors, google_monitoring_alert_policy.uptime) :
      policy.notification_channels == tolist(["projects/my-project/notificationChannels/1"])
    ]) && length(google_monitoring_alert_policy.uptime) == 1
    error_message = "Every alert notifies the given channels."
  }

  assert {
    condition     = google_billing_budget.this[0].budget_filter[0].projects == toset(["projects/123456789012"]) && google_billing_budget.this[0].amount[0].specified_amount[0].units == "20"
    error_message = "The budget watches this project alone."
  }

  assert {
    condition     = google_billing_budget.this[0].all_updates_rule[0].monitoring_notification_channels == tolist(["projects/my-project/notificationChannels/1"])
    error_message = "The budget notifies the channels of the alerts."
  }

  assert {
    condition     = google_monitoring_uptime_check_config.health[0].http_check[0].path == "/health"
    error_message = "Paths that end in z are reserved on run.app, so the check uses /health."
  }

  assert {
    condition     = length(google_logging_project_sink.default[0].exclusions) == 2 && google_logging_project_sink.default[0].exclusions[1].name == "noise"
    error_message = "The sink has one owner: earlier exclusions can be declared."
  }

  assert {
    condition     = length(google_project_service.this) == 0
    error_message = "If APIs are turned on elsewhere, Terraform does not touch them."
  }
}
