machine "db" {
  provider = cloud
  region   = "eu"
  type     = "small"

  volume "data" { size = 10 }
  volume "logs" { size = 10 }
}
