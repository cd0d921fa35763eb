machine "web" {
  provider = cloud
  region   = "nl"
  type     = "small"
}
