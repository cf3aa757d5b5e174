# Who may call the gateway, and at which address.
variable "domain" {
  description = "Serve these names through a global load balancer with Cloud Armor; the run.app address is then closed. requests_per_minute: of one address."
  type = object({
    names               = list(string)
    requests_per_minute = optional(number, 600)
  })
  default = null

  validation {
    condition = var.domain == null ? true : length(var.domain.names) > 0 && alltrue([
      for name in var.domain.names : can(regex("^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z]{2,63}$", name))
    ])
    error_message = "domain.names are one or more host names in lower case, such as gemini.example.com."
  }

  validation {
    condition     = var.domain == null ? true : var.domain.requests_per_minute >= 1 && var.domain.requests_per_minute <= 1000000
    error_message = "domain.requests_per_minute is a number from 1 to 1000000."
  }
}

variable "invokers" {
  description = "Who may call a private gateway: user:…, group:…, serviceAccount:…, domain:…"
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = var.private || length(var.invokers) == 0
    error_message = "A public gateway is open to everybody: name invokers only together with private = true."
  }

  validation {
    condition     = !var.private || length(var.invokers) > 0
    error_message = "private = true needs invokers: without them no client could call."
  }

  validation {
    condition = alltrue([
      for member in var.invokers :
      can(regex("^(user|group|serviceAccount|domain|principal|principalSet):\\S+$", member)) && !strcontains(member, "//goog/public")
    ])
    error_message = "Each of invokers is user:…, group:…, serviceAccount:…, domain:…, principal:… or principalSet:…; allUsers and goog/public would be public."
  }
}

variable "private" {
  description = "Let only invokers call, with an ID token in X-Serverless-Authorization beside Pollux's own token."
  type        = bool
  default     = false
  nullable    = false
}
