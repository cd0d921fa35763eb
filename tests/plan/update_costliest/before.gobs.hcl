machine "web" {
  provider = cloud
  region   = "nl"
  type     = "small"
  tags     = ["a", "b"]
}
