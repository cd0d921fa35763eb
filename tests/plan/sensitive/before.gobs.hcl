machine "db" {
  provider = dummy
  password = "canary-one"
  size     = "s"
}
