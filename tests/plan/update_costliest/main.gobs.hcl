machine "web" {
  provider = cloud
  region   = "nl"
  type     = "large"
  tags     = ["b", "a"]
  backups  = true
}
