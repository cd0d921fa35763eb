# with derived_firewall.gobs.hcl
machine "app" {
  provider = cloud
  region   = "nl"
  type     = "small"
}
