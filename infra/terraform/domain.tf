# A domain of your own: a global load balancer in front, with Cloud Armor. Off unless `domain` is set.
locals {
  with_domain = var.domain == null ? 0 : 1
}

resource "google_compute_global_address" "this" {
  count = local.with_domain

  project = var.project
  name    = var.name

  depends_on = [google_project_service.this]
}

resource "google_compute_region_network_endpoint_group" "this" {
  count = local.with_domain

  project               = var.project
  name                  = var.name
  region                = var.region
  network_endpoint_type = "SERVERLESS"

  cloud_run {
    service = local.service_name
  }
}

# A limit per address and minute: more calls get 429 from the edge, and cost nothing behind it.
resource "google_compute_security_policy" "this" {
  #checkov:skip=CKV_GCP_73:The rule is about log4j, which is Java; there is no Java here.
  count = local.with_domain

  project = var.project
  name    = var.name

  rule {
    description = "Throttle each address."
    action      = "throttle"
    priority    = 1000

    match {
      versioned_expr = "SRC_IPS_V1"

      config {
        src_ip_ranges = ["*"]
      }
    }

    rate_limit_options {
      conform_action = "allow"
      exceed_action  = "deny(429)"
      enforce_on_key = "IP"

      rate_limit_threshold {
        count        = var.domain.requests_per_minute
        interval_sec = 60
      }
    }
  }

  rule {
    description = "What no other rule is about."
    action      = "allow"
    priority    = 2147483647

    match {
      versioned_expr = "SRC_IPS_V1"

      config {
        src_ip_ranges = ["*"]
      }
    }
  }

  depends_on = [google_project_service.this]
}

resource "google_compute_backend_service" "this" {
  count = local.with_domain

  project               = var.project
  name                  = var.name
  load_balancing_scheme = "EXTERNAL_MANAGED"
  protocol              = "HTTPS"
  security_policy       = google_compute_security_policy.this[0].id

  backend {
    group = google_compute_region_network_endpoint_group.this[0].id
  }

  log_config {
    enable      = true
    sample_rate = 1
  }
}

resource "google_compute_url_map" "this" {
  count = local.with_domain

  project         = var.project
  name            = var.name
  default_service = google_compute_backend_service.this[0].id
}

# Domains cannot be changed in place: the new certificate is made, under another name, before the old one is deleted.
resource "google_compute_managed_ssl_certificate" "this" {
  count = local.with_domain

  project = var.project
  name    = "${var.name}-${substr(sha1(join(",", var.domain.names)), 0, 8)}"

  managed {
    domains = var.domain.names
  }

  lifecycle {
    create_before_destroy = true
  }

  depends_on = [google_project_service.this]
}

resource "google_compute_target_https_proxy" "this" {
  count = local.with_domain

  project          = var.project
  name             = var.name
  url_map          = google_compute_url_map.this[0].id
  ssl_certificates = [google_compute_managed_ssl_certificate.this[0].id]
}

# No listener on port 80: a client that would send its token unencrypted fails at once, not after a redirect.
resource "google_compute_global_forwarding_rule" "this" {
  count = local.with_domain

  project               = var.project
  name                  = var.name
  ip_address            = google_compute_global_address.this[0].id
  target                = google_compute_target_https_proxy.this[0].id
  port_range            = "443"
  load_balancing_scheme = "EXTERNAL_MANAGED"
  labels                = local.labels
}
