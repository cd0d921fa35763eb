machine "web" {
  provider = cloud
  region   = "nl"
  type     = "small"
}
output "label" { value = machine.web.label }
