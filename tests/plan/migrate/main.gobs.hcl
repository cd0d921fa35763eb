machine "web" {
  provider = far
  region   = "eu"
  type     = "large"
  hob { enabled = false }
}
output "address" { value = machine.web.ipv4 }
