machine "db" {
  provider = cloud
  region   = "eu"
  type     = "small"

  volume "data" { size = 10 }
}

output "data" { value = machine.db.volume["data"].id }
