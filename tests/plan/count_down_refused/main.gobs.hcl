machine "web" {
  count    = 1
  provider = dummy
  lifecycle { prevent_destroy = true }
}
