output "a" { value = 2 }
output "b" { value = 1 }
