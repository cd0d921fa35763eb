variable "password" {
  default   = "canary-two"
  sensitive = true
}
machine "db" {
  provider = dummy
  password = var.password
  size     = "s"
}
