machine "app" {
  provider = dummy
  hob { enabled = false }
}
