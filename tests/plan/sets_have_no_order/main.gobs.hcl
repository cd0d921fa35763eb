machine "web" {
  provider = cloud
  region   = "nl"
  type     = "small"
  tags     = ["c", "a", "b", "a"]
}
