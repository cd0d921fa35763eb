# The provider chose this label itself: saying so changes nothing.
machine "web" {
  provider = cloud
  region   = "nl"
  type     = "small"
  label    = "label-machine.web-1"
}
