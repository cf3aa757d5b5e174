# Secrets without values: names and labels as the gateway reads them. Values come from `pollux keys` and `pollux tokens`, and
# never into Terraform's state.
locals {
  # Not every project name is valid as a label; the others go into the annotation.
  key_secrets = {
    for id, key in var.keys : "pollux-key-${id}" => {
      labels = merge(
        key.project != null && can(regex("^[a-z0-9_-]{1,63}$", key.project)) ? { project = key.project } : {},
        key.tier == null ? {} : { tier = key.tier },
        key.enabled ? {} : { enabled = "false" },
      )
      annotations = merge(
        key.project == null || can(regex("^[a-z0-9_-]{1,63}$", key.project)) ? {} : { pollux-project = key.project },
        length(key.limits) == 0 ? {} : { pollux-limits = jsonencode(key.limits) },
      )
    }
  }
  token_secrets = {
    for name in concat([for client in var.tokens : "pollux-token-${client}"], var.admin_token ? ["pollux-admin-token"] : []) :
    name => { labels = {}, annotations = {} }
  }
  secrets = merge(local.key_secrets, local.token_secrets)

  # The gateway reads these three labels of a key's secret; one for the bill would put all keys into one project.
  secret_labels = { for name, value in local.labels : name => value if !contains(["enabled", "project", "tier"], name) }
}

# Terraform does not manage labels and annotations that the command line adds (`pollux-version`, `enabled`); they stay.
resource "google_secret_manager_secret" "this" {
  for_each = local.secrets

  project     = var.project
  secret_id   = each.key
  labels      = merge(local.secret_labels, each.value.labels)
  annotations = each.value.annotations

  replication {
    dynamic "auto" {
      for_each = var.kms_key == null ? [true] : []
      content {}
    }

    # A regional key cannot encrypt what is replicated everywhere.
    dynamic "user_managed" {
      for_each = var.kms_key[*]

      content {
        replicas {
          location = var.region

          customer_managed_encryption {
            kms_key_name = user_managed.value
          }
        }
      }
    }
  }

  depends_on = [google_project_service.this, google_kms_crypto_key_iam_member.agents]
}
