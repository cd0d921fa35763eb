machine "db" {
  provider = cloud
  region   = "eu"
  type     = "small"

  volume "data" { size = 20 }
  volume "logs" { size = 10 }
}

machine "app" {
  provider = cloud
  region   = "eu"
  type     = "small"
  label    = machine.db.volume["logs"].id
}

output "data" { value = machine.db.volume["data"].id }
