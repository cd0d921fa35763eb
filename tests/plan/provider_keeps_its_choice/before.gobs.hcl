machine "web" {
  provider = cloud
  region   = "nl"
  type     = "small"
  label    = "mine"
}
output "label" { value = machine.web.label }
