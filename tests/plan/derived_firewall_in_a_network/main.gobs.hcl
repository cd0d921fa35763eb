machine "vpc" {
  provider = lan
  region   = "eu"
  type     = "small"
  hob {
    listen    = "[::]:7463"
    advertise = ["10.0.0.2"]
  }
  firewall { derived = true }
  interface {
    vpc    = "10.0.0.2"
    subnet = "db"
  }
  service "orders" { tcp = "127.0.0.1:5432" }
}
machine "vlan" {
  provider = lan
  region   = "eu"
  type     = "small"
  hob {
    listen    = "[::]:7463"
    advertise = ["10.1.0.2"]
  }
  firewall { derived = true }
  interface { vlan = "10.1.0.2/24" }
  service "orders" { tcp = "127.0.0.1:5432" }
}
machine "both" {
  provider = lan
  region   = "eu"
  type     = "small"
  hob {
    listen    = "[::]:7463"
    advertise = ["10.0.0.4", "ipv4"]
  }
  firewall { derived = true }
  interface { vpc = "10.0.0.4" }
  service "orders" { tcp = "127.0.0.1:5432" }
}
machine "app" {
  provider = lan
  region   = "eu"
  type     = "small"
  interface {
    vpc    = "10.0.0.3"
    subnet = "db"
  }
  interface {
    vpc    = "10.0.8.3"
    subnet = "app"
  }
  interface { vlan = "10.1.0.3/24" }
}
binding "vpc" {
  from = machine.vpc.service.orders
  to   = machine.app
}
binding "vlan" {
  from = machine.vlan.service.orders
  to   = machine.app
}
binding "both" {
  from = machine.both.service.orders
  to   = machine.app
}

# Nothing is advertised: the hob is where its default route begins, or where it listens.
machine "routed" {
  provider = lan
  region   = "eu"
  type     = "small"
  hob { listen = "[::]:7463" }
  firewall { derived = true }
  interface {}
  interface {
    subnet  = "app"
    primary = true
  }
  service "orders" { tcp = "127.0.0.1:5432" }
}
machine "bound" {
  provider = lan
  region   = "eu"
  type     = "small"
  hob { listen = "10.0.0.6:7463" }
  firewall { derived = true }
  interface {}
  interface { vpc = "10.0.0.6" }
  service "orders" { tcp = "127.0.0.1:5432" }
}
machine "public" {
  provider = lan
  region   = "eu"
  type     = "small"
  hob { listen = "[::]:7463" }
  firewall { derived = true }
  interface {}
  interface { vpc = "10.0.0.7" }
  service "orders" { tcp = "127.0.0.1:5432" }
}
binding "routed" {
  from = machine.routed.service.orders
  to   = machine.app
}
binding "bound" {
  from = machine.bound.service.orders
  to   = machine.app
}
binding "public" {
  from = machine.public.service.orders
  to   = machine.app
}
