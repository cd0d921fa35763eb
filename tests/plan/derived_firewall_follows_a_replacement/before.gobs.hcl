# with derived_firewall.gobs.hcl
machine "app" {
  provider = cloud
  region   = "eu"
  type     = "small"
}
