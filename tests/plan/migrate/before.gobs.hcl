machine "web" {
  provider = far
  region   = "nl"
  type     = "small"
  hob { enabled = false }
}
output "address" { value = machine.web.ipv4 }
