gobs {
  boss {
    listen    = "[::]:7462"
    advertise = ["boss.example.net:7462"]
  }
}
machine "db" {
  provider = far
  region   = "x"
  type     = "y"
  service "x" { tcp = "127.0.0.1:1" }
}
machine "here" {
  provider = dummy
}
binding "x" {
  from = machine.db.service.x
  to   = machine.here
}
