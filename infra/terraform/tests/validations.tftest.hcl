# What is refused before anything is made; each message says what would be right. Several variables share a run, one wrong
# value each: a run costs seconds, and a variable's rules are checked one by one.
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

run "wrong_values_one" {
  command = plan

  variables {
    # a zone is no region
    region = "europe-west1-b"
    # a number is no project
    project = "123456789012"
    # a maximum below the minimum
    service = { max_instances = 1, min_instances = 2 }
    # public and private at once
    invokers = ["user:a@example.com"]
    # a key id with capitals
    keys = { Alice = {} }
    # a client whose name starts with a digit
    tokens = ["1st"]
    # a name that ends in a dash
    name = "pollux-"
    # a domain with a scheme
    domain = { names = ["https://gemini.example.com"] }
    # a database with capitals
    database = { name = "Pollux" }
    # a channel by its address
    notification_channels = ["oncall@example.com"]
    # a share above one
    alerts = { error_share = 5 }
    # a budget of nothing
    budget = { amount = 0, billing_account = "012345-6789AB-CDEF01" }
  }

  expect_failures = [
    var.alerts,
    var.budget,
    var.database,
    var.domain,
    var.invokers,
    var.keys,
    var.name,
    var.notification_channels,
    var.project,
    var.region,
    var.service,
    var.tokens,
  ]
}

run "wrong_values_two" {
  command = plan

  variables {
    # a multi region is no region
    region = "eur3"
    # no instances at all
    service = { max_instances = 0 }
    # private for everybody
    private  = true
    invokers = ["allUsers"]
    # a key id that starts with a dash
    keys = { "-a" = {} }
    # a client whose name is too long
    tokens = ["a12345678901234567890123456789012"]
    # a name too long for an account
    name = "a23456789012345678901234"
    # a domain without names
    domain = { names = [] }
    # backups for ever
    database = { backup_days = 99 }
    # no minutes
    alerts = { minutes = 0 }
    # a billing account by its name
    budget = { amount = 5, billing_account = "ours" }
  }

  expect_failures = [
    var.alerts,
    var.budget,
    var.database,
    var.domain,
    var.invokers,
    var.keys,
    var.name,
    var.region,
    var.service,
    var.tokens,
  ]
}

run "wrong_values_three" {
  command = plan

  variables {
    # more at once than cloud run allows
    service = { concurrency = 1001 }
    # private for nobody
    private = true
    # a key id that is too long
    keys = { "a123456789012345678901234567890123456789012345678901234567890123" = {} }
    # a key in another region
    kms_key = "projects/my-project/locations/europe-west1/keyRings/ring/cryptoKeys/key"
    # a rate of nothing
    domain = { names = ["gemini.example.com"], requests_per_minute = 0 }
  }

  expect_failures = [
    var.domain,
    var.invokers,
    var.keys,
    var.kms_key,
    var.service,
  ]
}

run "wrong_values_four" {
  command = plan

  variables {
    # a longer timeout than cloud run allows
    service = { timeout_seconds = 3601 }
    # a key of no project
    keys = { a = { project = "team a" } }
    # a key that is none
    kms_key = "my-key"
    # an uptime check of a private gateway
    private      = true
    invokers     = ["user:a@example.com"]
    uptime_check = true
  }

  expect_failures = [
    var.keys,
    var.kms_key,
    var.service,
    var.uptime_check,
  ]
}

run "wrong_values_five" {
  command = plan

  variables {
    # a memory that is no size
    service = { memory = "512" }
    # an unknown tier
    keys = { a = { tier = "gold" } }
  }

  expect_failures = [
    var.keys,
    var.service,
  ]
}

run "wrong_values_six" {
  command = plan

  variables {
    # half a cpu
    service = { cpu = "0.5" }
    # an unknown limit
    keys = { a = { limits = { "*" = { rps = 1 } } } }
  }

  expect_failures = [
    var.keys,
    var.service,
  ]
}

run "wrong_values_seven" {
  command = plan

  variables {
    # billing by instance for a function
    service = { instance_billing = true }
    # half a request
    keys = { a = { limits = { "*" = { rpm = 0.5 } } } }
  }

  expect_failures = [
    var.keys,
    var.service,
  ]
}

run "wrong_values_eight" {
  command = plan

  variables {
    # an image without a tag
    image = "us-central1-docker.pkg.dev/my-project/pollux/pollux"
  }

  expect_failures = [
    var.image,
  ]
}

run "wrong_values_nine" {
  command = plan

  variables {
    # a gateway that refuses what it is sent
    settings = { max_concurrent = 10 }
  }

  expect_failures = [
    var.settings,
  ]
}

run "wrong_values_ten" {
  command = plan

  variables {
    # a catalog in a function
    settings = { catalog = "/etc/catalog.toml" }
  }

  expect_failures = [
    var.settings,
  ]
}

run "wrong_values_eleven" {
  command = plan

  variables {
    # a log without requests
    settings = { log_level = "error" }
  }

  expect_failures = [
    var.settings,
  ]
}
