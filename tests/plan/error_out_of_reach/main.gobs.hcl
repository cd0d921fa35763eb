machine "calls" {
  provider = far
  region   = "x"
  type     = "y"
}
machine "fetches" {
  provider = far
  region   = "x"
  type     = "y"
  hob { dial = "boss" }
}
machine "loops" {
  provider = far
  region   = "x"
  type     = "y"
  hob {
    dial    = "boss"
    listen  = "127.0.0.1:1"
    install = "image"
  }
}
machine "any" {
  provider = far
  region   = "x"
  type     = "y"
  hob {
    dial    = "boss"
    listen  = "[::]:0"
    install = "image"
  }
}
machine "fine" {
  provider = far
  region   = "x"
  type     = "y"
  hob {
    dial    = "boss"
    install = "image"
  }
}
machine "here" {
  provider = dummy
  service "x" { tcp = "127.0.0.1:1" }
}
machine "strict" {
  provider = cloud
  region   = "x"
  type     = "y"
  hob { require_address = true }
}
binding "leads_nowhere" {
  from = machine.here.service.x
  to   = machine.fine
}
