machine "app" {
  provider = dummy
  hob { deadline = "5m" }
}
machine "web" {
  provider = dummy
  hob { listen = "127.0.0.1:7000" }
}
