machine "web" {
  provider = cloud
  region   = "nl"
  type     = "small"
  disk { gb = 20 }
}
