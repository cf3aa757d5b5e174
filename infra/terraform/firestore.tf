# The database of counters and cooldowns. It never contains keys or tokens.
resource "google_firestore_database" "pollux" {
  project                           = var.project
  name                              = var.database.name
  location_id                       = coalesce(var.database.location, var.region)
  type                              = "FIRESTORE_NATIVE"
  concurrency_mode                  = "OPTIMISTIC"
  deletion_policy                   = "DELETE"
  delete_protection_state           = var.deletion_protection ? "DELETE_PROTECTION_ENABLED" : "DELETE_PROTECTION_DISABLED"
  point_in_time_recovery_enablement = var.database.point_in_time_recovery ? "POINT_IN_TIME_RECOVERY_ENABLED" : "POINT_IN_TIME_RECOVERY_DISABLED"

  dynamic "cmek_config" {
    for_each = var.kms_key[*]

    content {
      kms_key_name = cmek_config.value
    }
  }

  depends_on = [google_project_service.this, google_kms_crypto_key_iam_member.agents]
}

# Documents are only found by their names. Without this every commit would also write an index of the whole text.
resource "google_firestore_field" "no_index" {
  project    = var.project
  database   = google_firestore_database.pollux.name
  collection = "pollux"
  field      = "*"

  index_config {}
}

# A field with its own policy no longer follows `*`, so this repeats that it has no index.
resource "google_firestore_field" "expires_at" {
  project    = var.project
  database   = google_firestore_database.pollux.name
  collection = "pollux"
  field      = "expires_at"

  index_config {}
  ttl_config {}

  # A collection's fields cannot be changed while another change of them is under way.
  depends_on = [google_firestore_field.no_index]
}

resource "google_firestore_backup_schedule" "daily" {
  count = var.database.backup_days > 0 ? 1 : 0

  project   = var.project
  database  = google_firestore_database.pollux.name
  retention = "${var.database.backup_days * 86400}s"

  daily_recurrence {}
}
