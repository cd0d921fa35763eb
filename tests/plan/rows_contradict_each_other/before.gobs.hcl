machine "a" { provider = dummy }
machine "b" { provider = dummy }
