//! What an application does with sqlx, and nothing that gobs would have asked for: a pool from
//! `DATABASE_URL`, prepared statements with parameters, a transaction. Prints who it is.

use sqlx::postgres::PgPoolOptions;

#[tokio::main]
async fn main() -> Result<(), sqlx::Error> {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL");
    let pool = PgPoolOptions::new()
        .max_connections(5)
        .connect(&url)
        .await?;
    let mut answers = Vec::new();
    for n in 0_i64..20 {
        let answer = sqlx::query_scalar::<_, i64>("select $1 + 1").bind(n);
        answers.push(answer.fetch_one(&pool).await?);
    }
    assert_eq!(answers, (1..=20).collect::<Vec<i64>>());
    let mut transaction = pool.begin().await?;
    sqlx::query("select set_config('app.name', $1, true)")
        .bind("orders")
        .execute(&mut *transaction)
        .await?;
    let name = sqlx::query_scalar::<_, String>("select current_setting('app.name')");
    assert_eq!(name.fetch_one(&mut *transaction).await?, "orders");
    transaction.rollback().await?;
    let who =
        sqlx::query_scalar::<_, String>("select concat_ws(' ', session_user, current_database())");
    println!("{}", who.fetch_one(&pool).await?);
    pool.close().await;
    Ok(())
}
