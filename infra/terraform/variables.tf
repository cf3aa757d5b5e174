# Variables. Those about callers are in variables-access.tf, about alerts and logs in variables-watch.tf. Only `project` has no
# default. Patterns of ids and names are those of the code.
variable "admin_token" {
  description = "Declare the secret of the admin token. Its value: pollux tokens add --admin."
  type        = bool
  default     = true
  nullable    = false
}

variable "database" {
  description = "The Firestore database. Its location, by default the region, cannot be changed later. backup_days 0 makes no backups."
  type = object({
    backup_days            = optional(number, 0)
    location               = optional(string)
    name                   = optional(string, "pollux")
    point_in_time_recovery = optional(bool, false)
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.database.name == "(default)" || can(regex("^[a-z][a-z0-9-]{2,61}[a-z0-9]$", var.database.name))
    error_message = "database.name is (default), or 4 to 63 of a-z, 0-9 and -, from a letter to a letter or digit."
  }

  validation {
    condition     = var.database.location == null ? true : can(regex("^([a-z]+-[a-z]+[0-9]{1,2}|nam[0-9]{1,2}|eur[0-9]{1,2})$", var.database.location))
    error_message = "database.location is a region such as europe-west1 or a multi-region such as eur3, not a zone."
  }

  validation {
    condition     = var.database.backup_days >= 0 && var.database.backup_days <= 98 && floor(var.database.backup_days) == var.database.backup_days
    error_message = "database.backup_days is a whole number from 0 (no backups) to 98 (14 weeks, the most that Firestore keeps)."
  }
}

variable "deletion_protection" {
  description = "Refuse to destroy the database and a Cloud Run service from an image. Set it to false, and apply, before a teardown."
  type        = bool
  default     = true
  nullable    = false
}

variable "enable_apis" {
  description = "Turn on the APIs that are needed. false: they are turned on elsewhere."
  type        = bool
  default     = true
  nullable    = false
}

variable "image" {
  description = "Run this image (of the Dockerfile) as a Cloud Run service, instead of a function that is built from the source."
  type        = string
  default     = null

  validation {
    condition     = var.image == null ? true : can(regex("^[^\\s/]+/\\S+(:[\\w.-]+|@sha256:[0-9a-f]{64})$", var.image))
    error_message = "image names a registry, a path and a tag or digest, such as europe-west1-docker.pkg.dev/PROJECT/pollux/pollux:1."
  }
}

variable "keys" {
  description = "Keys whose secrets Terraform declares, by id. Their values: pollux keys rotate ID. A key without a project is its own project."
  type = map(object({
    enabled = optional(bool, true)
    limits  = optional(map(map(number)), {})
    project = optional(string)
    tier    = optional(string)
  }))
  default  = {}
  nullable = false

  validation {
    condition     = alltrue([for id in keys(var.keys) : can(regex("^[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_-])?$", id))])
    error_message = "The id of a key is 1 to 63 of letters, digits, _ and -, and does not start with _ or -: it becomes part of a secret's name."
  }

  validation {
    condition = alltrue([
      for key in values(var.keys) : key.project == null ? true : can(regex("^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$", key.project))
    ])
    error_message = "The project of a key is a name of letters, digits, . _ : and -, at most 63 of them."
  }

  validation {
    condition     = alltrue([for key in values(var.keys) : key.tier == null ? true : contains(["free", "tier1", "tier2", "tier3"], key.tier)])
    error_message = "The tier of a key is free, tier1, tier2 or tier3."
  }

  validation {
    condition = alltrue(flatten([
      for key in values(var.keys) : [
        for numbers in values(key.limits) : [
          for name, number in numbers : contains(["rpm", "tpm", "rpd", "tpd", "ipm"], name) && number >= 0 && floor(number) == number
        ]
      ]
    ]))
    error_message = "The limits of a key are {MODEL or \"*\" = {rpm, tpm, rpd, tpd or ipm = whole number, 0 or more}}."
  }
}

variable "kms_key" {
  description = "A key in Cloud KMS, of the same region, that encrypts the database, secrets, source, images and the service. Only for a new deployment."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key == null ? true : can(regex("^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$", var.kms_key))
    error_message = "kms_key is projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY."
  }

  validation {
    condition     = var.kms_key == null ? true : try(split("/", var.kms_key)[3], "") == var.region && coalesce(var.database.location, var.region) == var.region
    error_message = "kms_key, region and database.location must be in one region: Firestore and Secret Manager take no key of another."
  }
}

variable "labels" {
  description = "Labels for all resources that can have labels. project, tier and enabled are not put on secrets, where the gateway would read them as a key's."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition = alltrue([
      for name, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", name)) && can(regex("^[a-z0-9_-]{0,63}$", value))
    ])
    error_message = "labels are a letter and at most 62 of a-z, 0-9, _ and -, and have values of at most 63 of these."
  }
}

variable "name" {
  description = "The name of the service, its accounts, repository and dashboard."
  type        = string
  default     = "pollux"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,21}[a-z0-9]$", var.name))
    error_message = "name is 2 to 23 of a-z, 0-9 and -, from a letter to a letter or digit: accounts are named after it."
  }
}

variable "pooled_files" {
  description = "POLLUX_FILES=pooled, with a bucket for the contents: a file that is uploaded once serves in every project (docs/resources.md)."
  type        = bool
  default     = false
  nullable    = false
}

variable "project" {
  description = "The Google Cloud project for everything."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "project is a project's id, not its name or number: 6 to 30 of a-z, 0-9 and -."
  }
}

variable "region" {
  description = "The region of the gateway and, unless database.location says otherwise, of its database."
  type        = string
  default     = "us-central1"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]{1,2}$", var.region))
    error_message = "region is a region such as europe-west1, neither a zone (europe-west1-b) nor a multi-region (eur3)."
  }
}

variable "service" {
  description = "How large the service is and how many of it run. cpu_boost and instance_billing (CPU also between requests) need an image."
  type = object({
    concurrency      = optional(number, 80)
    cpu              = optional(string, "1")
    cpu_boost        = optional(bool, true)
    instance_billing = optional(bool, false)
    max_instances    = optional(number, 10)
    memory           = optional(string, "512Mi")
    min_instances    = optional(number, 0)
    timeout_seconds  = optional(number, 3600)
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.service.min_instances >= 0 && var.service.max_instances >= 1 && var.service.max_instances >= var.service.min_instances
    error_message = "service.max_instances is 1 or more, and not below service.min_instances."
  }

  validation {
    condition     = var.service.concurrency >= 1 && var.service.concurrency <= 1000
    error_message = "service.concurrency is from 1 to 1000, which is Cloud Run's limit."
  }

  validation {
    condition     = var.service.timeout_seconds >= 1 && var.service.timeout_seconds <= 3600
    error_message = "service.timeout_seconds is from 1 to 3600, which is Cloud Run's limit."
  }

  validation {
    condition     = can(regex("^[1-9][0-9]*(Mi|Gi)$", var.service.memory))
    error_message = "service.memory is a size such as 512Mi or 1Gi."
  }

  validation {
    condition     = contains(["1", "2", "4", "6", "8"], var.service.cpu)
    error_message = "service.cpu is 1, 2, 4, 6 or 8: with less than one, Cloud Run allows no more than one request at once."
  }

  validation {
    condition     = var.image != null || !var.service.instance_billing
    error_message = "service.instance_billing needs image: a function is always billed by the request."
  }
}

variable "settings" {
  description = "Pollux's own settings, each the variable POLLUX_<NAME>: docs/settings.md. Settings that are missing here are set by this module, or are of no use in the cloud."
  type = object({
    allow_paths     = optional(list(string))
    body_memory     = optional(string)
    catalog         = optional(string)
    connect_timeout = optional(number)
    cors_origins    = optional(list(string))
    fallback_after  = optional(number)
    http            = optional(string)
    log_level       = optional(string)
    max_attempts    = optional(number)
    max_body        = optional(string)
    max_concurrent  = optional(number)
    max_wait        = optional(number)
    mode            = optional(string)
    never_below     = optional(list(string))
    public_url      = optional(string)
    query_token     = optional(bool)
    sticky          = optional(bool)
    store_down      = optional(string)
    strategy        = optional(string)
    timeout         = optional(number)
    upstream        = optional(string)
    window          = optional(string)
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.settings.max_concurrent == null ? true : var.settings.max_concurrent >= var.service.concurrency
    error_message = "settings.max_concurrent is not below service.concurrency, or the gateway would refuse what Cloud Run sends it."
  }

  validation {
    condition     = var.settings.catalog == null || var.image != null
    error_message = "settings.catalog names a file in the image: it needs image."
  }

  validation {
    condition     = var.settings.log_level == null ? true : contains(["debug", "info"], var.settings.log_level)
    error_message = "settings.log_level is debug or info: metrics and alerts are made of the lines of requests and of warnings."
  }

  validation {
    condition = alltrue([
      var.settings.http == null ? true : contains(["auto", "own", "httpx"], var.settings.http),
      var.settings.mode == null ? true : contains(["both", "pro_only", "flash_only", "flash_lite_only"], var.settings.mode),
      var.settings.store_down == null ? true : contains(["safe", "closed"], var.settings.store_down),
      var.settings.strategy == null ? true : contains(["earliest", "round_robin", "least_recently_used", "most_available"], var.settings.strategy),
      var.settings.window == null ? true : contains(["sliding", "minute"], var.settings.window),
    ])
    error_message = "settings.http, mode, store_down, strategy and window are words of docs/settings.md: with another the gateway would not start."
  }

  validation {
    condition = alltrue([
      for url in [var.settings.public_url, var.settings.upstream] : url == null ? true : can(regex("^https://[^\\s/?#@]+(/[^\\s?#@]*)?$", url))
    ])
    error_message = "settings.upstream and public_url are https:// URLs: keys and tokens travel to them."
  }
}

variable "tokens" {
  description = "Clients whose token's secret Terraform declares, by name. Their values: pollux tokens add NAME."
  type        = set(string)
  default     = ["default"]
  nullable    = false

  validation {
    condition     = alltrue([for name in var.tokens : can(regex("^[A-Za-z][A-Za-z0-9_-]{0,31}$", name))])
    error_message = "A client's name is a letter and at most 31 of letters, digits, _ and -."
  }
}
